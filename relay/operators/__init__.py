"""Carries out on live connections and streams what operators decide, here or in SQL."""
