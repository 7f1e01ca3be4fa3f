"""How the processes of a run start, agree and end."""
