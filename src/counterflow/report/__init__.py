"""Report of finished runs: tables, plots and the origin of every number. It reads run directories alone."""
