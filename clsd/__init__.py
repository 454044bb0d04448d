"""clsd: click logs in, a served, confidence-weighted CTR model out."""
