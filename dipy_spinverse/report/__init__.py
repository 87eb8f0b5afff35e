"""What a person looks at: files, figures, glyphs."""
