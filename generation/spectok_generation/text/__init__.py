"""Text: encoders from open_clip, the features of a data set's captions, and a small CLIP to train."""
