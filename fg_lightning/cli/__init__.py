"""The command line: one file a command. The only place that parses arguments and prints."""
