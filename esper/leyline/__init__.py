"""Types that rooms share: frozen messages, enums, and ports (protocols). It imports no torch and has no behaviour."""
