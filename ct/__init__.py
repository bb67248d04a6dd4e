"""The container arm: Linux namespaces and cgroups without an engine; and the bare process."""
