"""What is published: folders, cards, licences, the Hub."""
