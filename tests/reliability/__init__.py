"""Long runs whose figures stand in ``reports/reliability.md``, each with its command in its first line."""
