"""From a profile to a plan: candidates, the search over them, the decision, its evaluation."""
