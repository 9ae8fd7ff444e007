"""The engine `openai` and the judge `client`: models behind an OpenAI-compatible server."""
