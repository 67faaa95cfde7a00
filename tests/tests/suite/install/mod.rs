//! `adit up USER@HOST` on a box with sshd and Ollama and nothing else.

mod bare;
mod obstacles;
mod removal;
mod systemd;
mod upgrade;
