"""What Alembic runs for each upgrade: on the connection that the store hands over, inside its transaction.

It must not open connections or configure logging.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
