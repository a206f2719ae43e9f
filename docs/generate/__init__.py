"""Fill the pages in docs/ from the figures in results/."""
