"""Policies: what decides the action of every token. Networks, schedules, and how they are saved."""
