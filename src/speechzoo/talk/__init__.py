"""Talking to models: questions from files, stdin or a browser, answers as text and sound while they are being made."""
