"""Reports: a pure function from run directories to tables, charts, HTML and PDF."""
