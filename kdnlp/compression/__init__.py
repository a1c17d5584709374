"""What makes other files of a trained model, each checked against it before it gets its name."""
