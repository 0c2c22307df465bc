"""Who decides: the learned network and the schedules it is compared with, all behind one protocol."""
