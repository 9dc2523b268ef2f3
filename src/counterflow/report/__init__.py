"""The report of finished runs: tables, figures and where every number came from. It reads run directories alone."""
