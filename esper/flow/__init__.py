"""How a run goes: begin, train, hold at fences, go back, resume, end. The same in one process and on Ray."""
