"""The whole config of a run. It joins the tables of all rooms, and has the tables that belong to no room. It imports no
torch."""
