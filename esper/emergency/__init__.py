"""Emergency: a bounded queue of signals that drops nothing in silence, and the word that trainers read at each step."""
