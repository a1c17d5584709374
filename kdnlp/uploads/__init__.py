"""What goes to the Hub, and how: files that may, cards that say everything, one commit or none."""
