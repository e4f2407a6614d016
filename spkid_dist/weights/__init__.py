"""Files of weights: how they are read whoever wrote them, and how they are known to be what was written."""
