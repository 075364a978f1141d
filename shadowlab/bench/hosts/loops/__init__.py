"""Training loops as their hosts have them. Each file is one, whole: what the watch adds to it is marked.

`# added` ends a line that the loop has because of the watch; `# was: TEXT` one that replaces TEXT. `source.bare` takes
them out again, and what is left is the loop as it was.
"""
