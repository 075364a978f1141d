"""What a person looks at: made of the files of a run, and rebuilt from them."""
