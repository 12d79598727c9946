"""The command line of training: each command parses, calls one library function, prints and exits."""
