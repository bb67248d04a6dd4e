"""One small process beside the harness that runs other programs and takes all of them down."""
