"""What a run found, judged, drawn and written down for people."""
