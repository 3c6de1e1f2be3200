"""The dead letters: what one says (`letters`, pure), and the stream that they are in (`box`)."""
