"""What commands print: tables for people on standard output, JSON where a script asked for it."""
