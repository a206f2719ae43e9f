"""Make and check what is published: folders, model cards, licences and uploads to the Hub."""
