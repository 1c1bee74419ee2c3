"""Two small annotated corpora, one per supported layout."""

from __future__ import annotations

DATA = """<?xml version="1.0" encoding="UTF-8" ?>
<corpus lang="en" source="test">
<text id="d000">
<sentence id="d000.s000">
<wf lemma="the" pos="DET">The</wf>
<instance id="d000.s000.t000" lemma="wrong" pos="VERB">Grand Jury</instance>
<instance id="d000.s000.t002" lemma="say" pos="VERB">said</instance>
<wf lemma="&amp;" pos=".">&amp;</wf>
</sentence>
<sentence id="d000.s001">
<instance id="d000.s001.t000" lemma="dog" pos="NOUN">Dogs</instance>
<instance id="d000.s001.t001" lemma="bark" pos="VERB">bark</instance>
</sentence>
</text>
</corpus>
"""


KEYS = """d000.s000.t000 grand_jury%1:14:00:: jury%1:14:00::
d000.s000.t002 say%2:32:00::
d000.s001.t000 dog%1:05:00::
d000.s001.t001 bark%2:32:00::
"""


SAMPLE = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE corpus SYSTEM "lexical-sample.dtd">
<corpus lang="en">
<lexelt item="football.n">
<instance id="football.0" docsrc="wiki">
<answer instance="football.0" senseid="football%1:04:00::"/>
<context>They play <head>football</head> in
the park &lt;here&gt; .</context>
</instance>
<instance id="football.1" docsrc="wiki">
<answer instance="football.1" senseid="football%1:06:00::"/>
<answer instance="football.1" senseid="football%1:04:00::"/>
<context>A leather <head>football</head> .</context>
</instance>
</lexelt>
</corpus>
"""
