"""The command line: its parser, `${...}`, and the doctor's command."""
