"""The flow of `esper.loop` across processes on Ray: thin shells, handles, supervision. No rule of its own."""
