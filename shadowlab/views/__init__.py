"""What a person looks at: made from the files of a run, and rebuilt from them."""
