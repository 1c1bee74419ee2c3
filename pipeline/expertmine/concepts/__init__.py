"""Where concepts come from: readers that turn a source into labelled texts. They know no corpus layout and no model."""
