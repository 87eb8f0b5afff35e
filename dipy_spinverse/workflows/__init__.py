"""Command lines in the idiom of DIPY's workflows."""
