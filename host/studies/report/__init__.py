"""Results as people read them: tables, figures, and one document for browser and text editor."""
