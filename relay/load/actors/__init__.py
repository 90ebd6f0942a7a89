"""The clients of a load test: phones, viewers, services, hostiles and scripts."""
