"""What ``python -m bench.apps`` runs: four applications, each written for alto and for LangGraph."""
