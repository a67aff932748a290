"""Text: encoders from open_clip, the features of a data set's captions, and a CLIP of one's own."""
