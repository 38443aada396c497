"""What several commands need: engines and settings to work on, questions, output, exit codes."""
