// Node's plain fetch, which knows no proxy: by name, to the TLS listener.
const port = process.argv[2];
for (let i = 0; i < 2; i++) {
  const reply = await fetch(`https://api.github.com:${port}/repos/o/r`, { headers: { authorization: 'Bearer ghp_dummy' } });
  console.log('repo', reply.status, (await reply.json()).full_name);
}
