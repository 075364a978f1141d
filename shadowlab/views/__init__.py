"""What a person looks at: made of metrics.jsonl, and made again from it."""
