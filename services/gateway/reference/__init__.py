"""The reference of the public surface: OpenAPI of the routes, AsyncAPI of the events, and a page that shows both."""
