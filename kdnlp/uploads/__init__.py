"""What goes to the Hub, and how: files that may, whole models and cards, one commit or none."""
