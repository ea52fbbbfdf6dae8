wrk.method = "POST"
wrk.body = '{"userId":"user_1","value":1.5}'
