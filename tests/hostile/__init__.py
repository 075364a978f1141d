"""Run folders as somebody hostile would send them, against every command that reads one.

An attack changes one file of a good run folder; a trial runs one command on it and looks at what came of it: no code
ran, nothing outside of the folder was made, changed or shown, no traceback, no hang, no control characters.

    python -m tests.hostile             every attack on every command; prints the number of trials
    python -m tests.hostile --kinds pipe,"link out" --commands report

`tests/test_hostile_folders.py` runs a part of them, the same one each time.
"""
