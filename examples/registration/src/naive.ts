/** The registration of users as it is often written: the unique index keeps duplicates out. */

import express from "express";

import { reach } from "./faults.js";
import { deleteUser, formIn, onError, pool, refuse, serve, showUser, siteOf } from "./web.js";

const app = express();
app.use(express.json());

app.post("/users", async (request, response) => {
  const { email, name } = formIn(request.body);
  reach("before_commit");
  const { rows } = await pool.query<{ id: string }>(
    "INSERT INTO users (site, email, name) VALUES ($1, $2, $3) ON CONFLICT (site, email) DO NOTHING RETURNING id",
    [siteOf(request), email, name],
  );
  reach("after_commit");
  const id = rows[0]?.id;
  console.log(id ? "registered" : "refused an e-mail that is used");
  if (!id) return refuse(response, 409, "EMAIL_USED", "email is already used");
  response.status(201).location(`/users/${id}`).json({ id, email, name });
});

app.get("/users/:id", showUser);
app.delete("/users/:id", deleteUser);
app.use(onError);
serve(app);
