"""The launcher: a small C program that makes each container's process (see ``main.c``)."""
