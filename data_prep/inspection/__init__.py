"""What is there (status), why it differs (explain), whether it is still what it was (verify). Nothing is changed."""
