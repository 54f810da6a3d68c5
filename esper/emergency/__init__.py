"""Emergency signals: a bounded queue that reports every refusal, and the word that trainers read at each step."""
